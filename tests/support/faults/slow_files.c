/* Delays each call of the C library that creates, removes or links a file, and each that opens or
 * asks for a path with "/images/", by SLOW_FILES_US microseconds, as a busy metadata server does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void
pause_if(int slow)
{
    if (slow) {
        long micros = atol(getenv("SLOW_FILES_US"));
        struct timespec time = {micros / 1000000, micros % 1000000 * 1000};
        nanosleep(&time, NULL);
    }
}

static int
is_slow(const char *path, int flags)
{
    return flags & O_CREAT || strstr(path, "/images/") != NULL;
}

#define CALL(name, slow, parameters, ...)                                                          \
    int name parameters                                                                            \
    {                                                                                              \
        static int(*real) parameters;                                                              \
        if (real == NULL)                                                                          \
            real = (int(*) parameters)dlsym(RTLD_NEXT, #name);                                     \
        pause_if(slow);                                                                            \
        return real(__VA_ARGS__);                                                                  \
    }

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        static int (*real)(const char *, int, ...);                                                \
        if (real == NULL)                                                                          \
            real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                       \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        int mode = va_arg(rest, int);                                                              \
        va_end(rest);                                                                              \
        pause_if(is_slow(path, flags));                                                            \
        return real(path, flags, mode);                                                            \
    }
#define OPENAT(name)                                                                               \
    int name(int folder, const char *path, int flags, ...)                                         \
    {                                                                                              \
        static int (*real)(int, const char *, int, ...);                                           \
        if (real == NULL)                                                                          \
            real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name);                  \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        int mode = va_arg(rest, int);                                                              \
        va_end(rest);                                                                              \
        pause_if(is_slow(path, flags));                                                            \
        return real(folder, path, flags, mode);                                                    \
    }
#define STAT(name, type)                                                                           \
    CALL(name, is_slow(path, 0), (const char *path, struct type *status), path, status)
#define FSTATAT(name, type)                                                                        \
    CALL(name, is_slow(path, 0), (int folder, const char *path, struct type *status, int flags),   \
         folder, path, status, flags)

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)
CALL(unlink, 1, (const char *path), path)
CALL(unlinkat, 1, (int folder, const char *path, int flags), folder, path, flags)
CALL(link, 1, (const char *from, const char *to), from, to)
CALL(linkat, 1, (int a, const char *from, int b, const char *to, int flags), a, from, b, to, flags)
