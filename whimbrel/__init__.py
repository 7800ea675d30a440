"""Everything that workflows, activities and drivers share.

Inside, from the top: ``runtime`` > ``report``, ``precheck``, ``config`` > ``contracts`` > ``dataplane`` > ``nbd`` >
``ports`` > ``model`` > ``errors``; each imports only what stands below it (``make lint`` checks it).
No cloud's SDK is imported here.
"""
