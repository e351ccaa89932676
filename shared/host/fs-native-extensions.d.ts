// What we use of a package that brings no types.

declare module 'fs-native-extensions' {
  const extensions: { trim(fd: number, offset: number, length: number): Promise<void> }
  export default extensions
}
