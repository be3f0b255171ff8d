"""The study of the infimum: Problem 2.2 against Problem 2.1, trained to optimality."""
