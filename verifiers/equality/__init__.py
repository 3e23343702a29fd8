"""When two trees mean the same."""
