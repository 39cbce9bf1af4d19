"""Who may call, how much and for how long: the first service of the online path."""
