"""Laws of operators and generators, and the commands that check somebody's own."""
