from setuptools import setup
setup(name="datadesc", version="0.1.0", packages=["datadesc"])
