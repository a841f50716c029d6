"""Array code that orders interactions and draws negatives, on NumPy, CuPy and torch alike."""
