"""Programs that each speak with a gateway through one client library, as their input says.

Know no gateway and no expectation: they carry out steps and print what came back.
"""
