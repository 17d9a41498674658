"""Bundles: an exported model as a directory that this and other runtimes can load."""
