// A source of standby.yaml, with what the person who runs the command allows.

import type { Source } from '../config/schema.ts'
import type { User } from './user.ts'

export type NamedSource = Source & {
  /** Its key in standby.yaml. */
  readonly name: string
  readonly user: User
}
