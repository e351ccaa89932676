// Stops a session at a step for certain: virsh, as serve finds it first on its PATH, waits before or after one call for as
// long as a file says so. Without that file it is virsh, nothing else.

import type { Lab } from '../lab/lab.ts'
import { waitFor } from '../lab/processes.ts'
import type { Step } from '../../server/session/journal.ts'

/** On the host's own file system, so that a power cut does not take it away. */
const DIRECTORY = '/var/lib/faults'
const CONTROL = '/run/faults'
/** Longer than anything that serve does by itself between two calls of virsh. */
const REACH_SECONDS = 60

const WRAPPER = `#!/bin/sh
# virsh that a file can hold. Its lines: before, after or fail; and a pattern for "LAST-JOURNAL-STEP ARGUMENTS".
if { read -r mode && IFS= read -r pattern; } 2>/dev/null <${CONTROL}/hold; then
  step=$(sed -n '$s/^{"step":"\\([^"]*\\)".*/\\1/p' /var/lib/nbd-clone/sessions/mydomain.journal 2>/dev/null)
  case "$step $*" in $pattern)
    if [ "$mode" = fail ]; then echo 'error: internal error: refused by the test' >&2; exit 1; fi
    # Whoever can move the file holds; all others go on.
    if mv ${CONTROL}/hold ${CONTROL}/taken.$$ 2>/dev/null; then
      status=0
      if [ "$mode" = after ]; then /usr/bin/virsh "$@"; status=$?; fi
      echo $$ >${CONTROL}/taken.$$
      mv ${CONTROL}/taken.$$ ${CONTROL}/held
      while [ -e ${CONTROL}/held ]; do sleep 0.02; done
      if [ "$mode" = after ]; then exit $status; fi
    fi ;;
  esac
fi
exec /usr/bin/virsh "$@"
`

/** Installs the wrapper on the source. @returns what to put first on serve's PATH */
export async function installWrapper(lab: Lab): Promise<string> {
  await lab.writeFile('source', `${DIRECTORY}/virsh`, WRAPPER)
  await lab.source(['chmod', '+x', `${DIRECTORY}/virsh`])
  return DIRECTORY
}

/** A call of virsh that stands, or will stand. */
export interface Hold {
  /** Resolves when the call stands. */
  reached(): Promise<void>
  /** SIGKILL to the virsh that stands. */
  kill(): Promise<void>
  /** Lets it go on, if it still lives. */
  release(): Promise<void>
}

/**
 * Holds the next call of virsh that matches.
 *
 * @param when `before`: libvirt has not heard of it; `after`: it is done, but virsh has not said so
 * @param call shell pattern for the journal's last step, a space, and virsh's arguments
 */
export async function hold(lab: Lab, when: 'before' | 'after', call: string): Promise<Hold> {
  await arm(lab, when, call)
  const pid = async (): Promise<string> =>
    (await lab.source(['cat', `${CONTROL}/held`], { reject: false })).stdout.trim()
  return {
    reached: () =>
      waitFor(`virsh ${when} ${call}`, REACH_SECONDS, async () => (await pid()) !== '').then(
        () => undefined,
      ),
    async kill() {
      await lab.source(['kill', '-KILL', await pid()])
      await letGo(lab)
    },
    release: () => letGo(lab),
  }
}

/** Makes every call of virsh that matches fail without reaching libvirt, until `letGo`. */
export function refuseCalls(lab: Lab, call: string): Promise<void> {
  return arm(lab, 'fail', call)
}

async function arm(lab: Lab, mode: string, call: string): Promise<void> {
  await letGo(lab)
  const write = `mkdir -p ${CONTROL} && cat >${CONTROL}/new && mv ${CONTROL}/new ${CONTROL}/hold`
  await lab.source(['sh', '-c', write], { input: `${mode}\n${call}\n` })
}

/** No call stands or will stand any more. */
export async function letGo(lab: Lab): Promise<void> {
  await lab.source(['rm', '-f', `${CONTROL}/hold`, `${CONTROL}/held`])
}

/** What virsh does at each step of the journal that has a call of its own. */
export const CALLS = {
  freeze: 'freeze *domfsfreeze*',
  snapshot: 'snapshot *snapshot-create-as*',
  thaw: 'thaw *domfsthaw*',
  merge: 'merge *blockcommit* vda *',
  pivot: 'pivot *blockjob* vda *--pivot*',
  clean: 'clean *',
} as const satisfies Partial<Record<Step, string>>
export type HeldStep = keyof typeof CALLS
