"""The smallest site each peer needs to be measured."""
