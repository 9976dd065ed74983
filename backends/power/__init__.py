"""Power and energy of cards: one interface, whoever answers."""
