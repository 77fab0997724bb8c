"""Many runs: the points of a sweep, who works on which, and what became of them. Imports no torch."""
