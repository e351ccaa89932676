// The process of one TLS connection: a child of serve, with the client's socket as file descriptor 0.

import { Socket } from 'node:net'
import { toFailure } from '../../shared/failures.ts'
import { relayTls } from './relay.ts'
import { TLS_PROCESS, type TlsJob, type TlsWord } from './words.ts'

process.title = TLS_PROCESS

/** What serve has not heard when it dies, nobody will hear. */
function tell(word: TlsWord): void {
  process.send?.(word, undefined, undefined, () => undefined)
}

process.once('message', (job: TlsJob) => {
  relayTls(new Socket({ fd: 0 }), job, tell)
    .catch((error: unknown) => tell({ kind: 'refused', reason: toFailure(error).message }))
    .finally(() => process.disconnect())
})
