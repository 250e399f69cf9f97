"""What must be true of a site that playbooks/site.yml has built, on the hosts of a lab."""
