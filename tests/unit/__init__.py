"""One part at a time: events in, actions asserted."""
