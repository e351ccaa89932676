// Which requests to a recorded disk end in EIO.

export const FAILING = ['nothing', 'reads', 'writes'] as const
export type Failing = (typeof FAILING)[number]
