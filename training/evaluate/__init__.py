"""How good are generated videos? Measures of videos and of pairs, their statistics, and a report."""
