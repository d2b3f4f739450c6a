"""`loden doctor`: what is wrong with this host, its peers and its etcd, and how to mend it.

Works before loden ever ran, and beside a running node. Each module looks at one part and answers
with findings; nothing is changed, and nothing is sent but pings and requests to etcd.
"""
