"""One step: batch, annotation, objective, update; and the supervised stage before it."""
