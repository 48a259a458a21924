"""Which of several runs is better, what it costs, and whether the difference is real."""
