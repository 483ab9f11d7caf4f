"""What an attacker may do: a norm and a radius, or a transformation and a budget."""
