"""`python -m benchmark inference`: scoring speed by batch size."""
