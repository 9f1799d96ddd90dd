"""Gates over scores, retries of rejected samples, failure analysis."""
