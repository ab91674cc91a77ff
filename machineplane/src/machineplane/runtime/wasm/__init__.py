"""WebAssembly modules as containers: `config` makes of a container's configuration one that runs `runner` in it."""
