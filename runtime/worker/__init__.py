"""The worker daemon of one host: starts actor processes from a zygote, watches and ends them, tells the head."""
