// Programs of these tests that run as built, and the environment without what loads TypeScript.

import path from 'node:path'
import { ROOT } from '../lab/names.ts'

/** The file of a program in this folder. */
export const built = (name: string): string =>
  path.join(ROOT, 'dist', 'test', 'store', `${name}.js`)

/** For a plain Node. */
export const PLAIN: NodeJS.ProcessEnv = { ...process.env, NODE_OPTIONS: '' }
