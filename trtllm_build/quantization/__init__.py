"""What becomes of the weights: recipes, the quantised files, and proof that they hold what they should."""
