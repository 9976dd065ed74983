"""How long can calls be held back, what does it save, and what does it cost those that run?"""
