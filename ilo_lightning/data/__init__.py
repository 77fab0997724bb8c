"""Pictures and what is made of them before a measurement."""
