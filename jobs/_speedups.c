/* The two inner loops of extraction that cost most in Python: finding ordinary members in a block
 * of a tar, and writing small files. Both are optional: jobs/speedups.py has the same functions in
 * Python, and the tests hold one against the other.
 *
 * Neither function decides anything. scan_tar() stops at whatever is not an ordinary file with an
 * ordinary header, and write_files() reports an error number for whatever is not a fresh file; the
 * Python code deals with both.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 512

/* An octal field as tar writers fill it: spaces, then digits, then NULs or spaces. -1: anything
 * else, such as base 256, which Python parses. */
static int64_t
octal(const unsigned char *field, int length)
{
    int64_t value = 0;
    int at = 0, digits = 0;
    while (at < length && field[at] == ' ')
        at++;
    for (; at < length && field[at] >= '0' && field[at] <= '7'; at++, digits++)
        value = value * 8 + (field[at] - '0');
    if (digits == 0 || digits > 20)
        return -1;
    for (; at < length; at++)
        if (field[at] != '\0' && field[at] != ' ')
            return -1;
    return value;
}

static int
checksum_is_right(const unsigned char *header)
{
    int64_t stored = octal(header + 148, 8);
    uint32_t sum = 8 * ' ';
    for (int at = 0; at < 148; at++)
        sum += header[at];
    for (int at = 156; at < BLOCK; at++)
        sum += header[at];
    return stored == (int64_t)sum;
}

static int
field_length(const unsigned char *field, int length)
{
    const unsigned char *end = memchr(field, '\0', length);
    return end ? (int)(end - field) : length;
}

/* The name in the header, with the ustar prefix before it; its length, or 0 where Python is to
 * look at it. */
static int
name_of(const unsigned char *header, unsigned char *name)
{
    int length = field_length(header, 100), before = 0;
    int ustar = memcmp(header + 257, "ustar\0", 6) == 0;
    int gnu = memcmp(header + 257, "ustar ", 6) == 0;
    if (length == 0 || (!ustar && !gnu))
        return 0;
    if (ustar && header[345]) {
        before = field_length(header + 345, 155);
        memcpy(name, header + 345, before);
        name[before++] = '/';
    }
    memcpy(name + before, header, length);
    length += before;
    return name[length - 1] == '/' ? 0 : length;
}

PyDoc_STRVAR(scan_tar_doc,
"scan_tar(block, start)\n--\n\n"
"Ordinary files that lie whole in ``block`` from the header at ``start`` on.\n\n"
"Returns a list of (name, offset of the content, size, mode, mtime), and where the next header\n"
"is. Stops before the first member that is not an ordinary file, whose header is not ordinary or\n"
"wrong, or whose content does not lie in the block with its padding.");

static PyObject *
scan_tar(PyObject *module, PyObject *args)
{
    Py_buffer block;
    Py_ssize_t at;
    if (!PyArg_ParseTuple(args, "y*n", &block, &at))
        return NULL;
    PyObject *members = PyList_New(0);
    const unsigned char *data = block.buf;
    while (members != NULL && at >= 0 && block.len - at >= BLOCK) {
        const unsigned char *header = data + at;
        unsigned char name[256];
        if ((header[156] != '0' && header[156] != '\0') || !checksum_is_right(header))
            break;
        int length = name_of(header, name);
        int64_t mode = octal(header + 100, 8), size = octal(header + 124, 12);
        int64_t mtime = octal(header + 136, 12);
        if (length == 0 || mode < 0 || size < 0 || mtime < 0)
            break;
        Py_ssize_t content = at + BLOCK;
        if (size > block.len - content)
            break;
        Py_ssize_t next = content + (Py_ssize_t)((size + BLOCK - 1) & ~(int64_t)(BLOCK - 1));
        if (next > block.len)
            break;
        PyObject *member = Py_BuildValue("(y#nLiL)", (char *)name, (Py_ssize_t)length, content,
                                         (long long)size, (int)(mode & 0777), (long long)mtime);
        if (member == NULL || PyList_Append(members, member) < 0)
            Py_CLEAR(members);
        Py_XDECREF(member);
        at = next;
    }
    PyBuffer_Release(&block);
    if (members == NULL)
        return NULL;
    return Py_BuildValue("(Nn)", members, at);
}

struct file {
    const char *path;
    int mode;
    Py_buffer data;
    int error;
};

/* 0, or the error number of the call that failed. */
static int
write_file(const struct file *file)
{
    int fd = open(file->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, file->mode);
    if (fd < 0)
        return errno;
    const char *data = file->data.buf;
    Py_ssize_t left = file->data.len;
    int error = 0;
    while (left > 0 && error == 0) {
        ssize_t count = write(fd, data, (size_t)left);
        if (count < 0)
            error = errno == EINTR ? 0 : errno;
        else {
            data += count;
            left -= count;
        }
    }
    if (close(fd) < 0 && error == 0)
        error = errno;
    return error;
}

PyDoc_STRVAR(write_files_doc,
"write_files(files)\n--\n\n"
"Make new files of (path, mode, data), each one, without the interpreter lock.\n\n"
"Returns a tuple with 0 or an error number (errno) for each; a file that is there already is left\n"
"as it is (EEXIST), and one that could not be written whole may be there in part.");

static PyObject *
write_files(PyObject *module, PyObject *argument)
{
    PyObject *items = PySequence_Fast(argument, "files is to be a sequence");
    if (items == NULL)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(items), known = 0;
    struct file *files = PyMem_Calloc(count ? count : 1, sizeof(struct file));
    PyObject *errors = NULL;
    if (files == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    for (; known < count; known++) {
        struct file *file = &files[known];
        PyObject *item = PySequence_Fast_GET_ITEM(items, known);
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a file is to be a tuple (path, mode, data)");
            goto end;
        }
        if (!PyArg_ParseTuple(item, "yiy*", &file->path, &file->mode, &file->data))
            goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0; at < count; at++)
        files[at].error = write_file(&files[at]);
    Py_END_ALLOW_THREADS
    errors = PyTuple_New(count);
    for (Py_ssize_t at = 0; errors != NULL && at < count; at++) {
        PyObject *error = PyLong_FromLong(files[at].error);
        if (error == NULL)
            Py_CLEAR(errors);
        else
            PyTuple_SET_ITEM(errors, at, error);
    }
end:
    for (Py_ssize_t at = 0; at < known; at++)
        PyBuffer_Release(&files[at].data);
    PyMem_Free(files);
    Py_DECREF(items);
    return errors;
}

static PyMethodDef methods[] = {
    {"scan_tar", scan_tar, METH_VARARGS, scan_tar_doc},
    {"write_files", write_files, METH_O, write_files_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "jobs._speedups",
    .m_doc = "Compiled forms of the functions in jobs.speedups.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
