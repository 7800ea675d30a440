"""Everything that workflows, activities and drivers share.

Inside, from the top: ``cli`` > ``runtime`` > ``report``, ``precheck``, ``config`` > ``contracts`` > ``stream`` >
``dataplane`` > ``nbd`` > ``ports`` > ``model`` > ``errors``; each imports only what stands below it
(``make lint`` checks it).
No cloud's SDK is imported here.
"""
