"""What is kept between runs because it is slow to make: which kinds there are, and how much of them stays.

Entries lie in `cache_dir() / kind`, each a folder or a file under a key of all that decides its content. Nothing in the
cache is needed: what is not there is made or fetched again.
"""
