"""An ensemble of GMF models and an item-item model, summed into one GMF."""
