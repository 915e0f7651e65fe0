"""What was learnt, as folders that tools of others load, with a card that says what it is."""
