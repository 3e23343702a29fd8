"""What a CPU computes by shorter ways: loaded by the trunk on a CPU, and by the embedded engine."""
