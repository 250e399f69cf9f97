"""Eight Debian hosts with systemd on this machine: `make lab`. docs/lab.md says how to use them."""
