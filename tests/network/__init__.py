"""Real processes in networks of several hosts: namespaces of the kernel, made and removed here."""
