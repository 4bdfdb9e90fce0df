"""The search over an attacker's settings: `backfire search`."""
