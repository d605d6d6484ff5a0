"""How well the harness finds what is planted: the scoreboard, and random injections."""
