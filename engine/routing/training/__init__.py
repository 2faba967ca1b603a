"""How predictors learn from traces."""
