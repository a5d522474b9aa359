"""Speed and memory of this project, measured beside its peers. See README.md."""
