"""How well predictors foretell traces they have not learnt."""
