"""`python -m chan`, and so `torchrun -m chan train ...` on several GPUs."""

from chan.command_line import chan

chan()
