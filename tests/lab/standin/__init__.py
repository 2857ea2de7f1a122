# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A stand-in for the Tetragon agent and the kernel under it, for labs whose machines cannot run the real one.

It behaves as the real agent of v1.7 was measured to behave, towards its files, its client, its pins and the acts that
processes attempt. It is written from those measurements alone.
"""
