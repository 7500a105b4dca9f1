"""How far a rank is: the small file that it keeps of itself, who writes it, and how it is read."""
