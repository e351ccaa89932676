// What serve and the child of a TLS connection say to each other over Node's channel.

import { z } from 'zod'
import type { TlsFiles } from './paths.ts'

/** From serve, once: whom to serve, with what. */
export interface TlsJob {
  /** Address of the client. */
  readonly peer: string
  readonly serveSocket: string
  readonly files: TlsFiles
}

const text = z.string().max(1000)

/** From the child, which has listened to anybody: so it is checked. */
export const tlsWord = z.discriminatedUnion('kind', [
  /** It is this client, and serve lets it in. */
  z.strictObject({ kind: z.literal('admitted'), client: text }),
  /** It is not let in. */
  z.strictObject({ kind: z.literal('refused'), client: text.optional(), reason: text }),
])
export type TlsWord = z.infer<typeof tlsWord>

/** The child's name in ps. */
export const TLS_PROCESS = 'clone-tls'
