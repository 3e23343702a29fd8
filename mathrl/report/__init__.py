"""Pages, charts, and findings in words."""
