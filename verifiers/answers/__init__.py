"""Answer types, one idea a file."""
