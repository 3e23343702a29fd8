"""Problems: where they come from, what a row means, and how they are asked."""
