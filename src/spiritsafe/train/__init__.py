"""Training set → student: initialisers, losses, the logit cache and the loop."""

from spiritsafe.train._examples import Example, Vocabulary, encode_exchange

__all__ = ["Example", "Vocabulary", "encode_exchange"]
