"""The program beside a trainer in its pod: it brings to the store what the trainer leaves, and tells what it writes.

The trainer's container has no credentials; this one has them, and nothing of the trainer's but a folder to read. It
imports little, since one of them waits beside every trial.
"""
